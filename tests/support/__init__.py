"""What the tests stand on.

debian, fetch_judges   other people's programs, fetched
judges, servers        those programs, asked and started
kernel, guest          a real kernel: from outside, and within
golden                 golden data, unpacked
leftovers              what a test left running
house                  the house rules
suite                  the walk through the test folders, with budgets
"""
