"""The golden pool is what its README says, by the judges' word: a test that leans on it leans on them."""

from __future__ import annotations

import pytest

from tests.support import judges
from tests.support.golden import KernelPool


def test_has_the_size_that_its_superblock_names(kernel_pool_a: KernelPool) -> None:
    """Both devices are whole."""
    facts = kernel_pool_a.facts
    assert kernel_pool_a.metadata.stat().st_size == facts["metadata_bytes"]
    assert kernel_pool_a.data.stat().st_size == facts["pool_sectors"] * 512


@pytest.mark.usefixtures("thin_judges")
def test_is_clean(kernel_pool_a: KernelPool) -> None:
    """Both engines find no fault."""
    judges.assert_clean(kernel_pool_a.metadata)


@pytest.mark.usefixtures("thin_judges")
def test_a_changed_byte_of_a_node_is_found(kernel_pool_a: KernelPool) -> None:
    """The judges do look: the mapping root with one bit flipped is damage to both."""
    image = bytearray(kernel_pool_a.metadata.read_bytes())
    image[kernel_pool_a.facts["superblock"]["data_mapping_root"] * 4096 + 100] ^= 1
    kernel_pool_a.metadata.write_bytes(image)
    assert [verdict.clean for verdict in judges.check_both(kernel_pool_a.metadata)] == [False, False]


@pytest.mark.usefixtures("thin_judges")
@pytest.mark.parametrize(("name", "options"), [("full.xml", []), ("held.xml", ["-m"])])
def test_the_dump_is_the_one_that_was_kept(kernel_pool_a: KernelPool, name: str, options: list[str]) -> None:
    """thin_dump still says what it said when the pool was made."""
    done = judges.thin_tool("cpp", "thin_dump").run(*options, kernel_pool_a.metadata)
    assert done.stdout == kernel_pool_a.text(name)
