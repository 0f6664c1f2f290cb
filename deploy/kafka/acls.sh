#!/bin/sh
# The least rights, by user: sh acls.sh BROKER PREFIX. BROKER is a listener that an administrator may use.
# agent: publishes; can't delete, can't speak for receivers. receiver: follows, and says how far it is. keeper: trims, and may see
# the topics' settings, so that it finds out where receivers' registrations wouldn't be kept.
set -eu
broker=$1 prefix=$2

acl() { kafka-acls.sh --bootstrap-server "$broker" --add "$@"; }

acl --allow-principal User:agent --operation Create --operation Describe --operation DescribeConfigs --operation Read --operation Write --topic "$prefix." --resource-pattern-type prefixed
acl --deny-principal User:agent --operation Write --topic "$prefix.receivers"
acl --allow-principal User:agent --operation Describe --operation Write --transactional-id "$prefix." --resource-pattern-type prefixed

acl --allow-principal User:receiver --operation Describe --operation Read --topic "$prefix." --resource-pattern-type prefixed
acl --allow-principal User:receiver --operation Write --topic "$prefix.receivers"

acl --allow-principal User:keeper --operation Delete --operation Describe --operation DescribeConfigs --operation Read --topic "$prefix." --resource-pattern-type prefixed

# A replica host that may be promoted publishes from then on; grant it beforehand, or when the day comes:
# acl --allow-principal User:receiver --operation Create --operation DescribeConfigs --operation Write --topic "$prefix." --resource-pattern-type prefixed
# acl --allow-principal User:receiver --operation Describe --operation Write --transactional-id "$prefix." --resource-pattern-type prefixed
