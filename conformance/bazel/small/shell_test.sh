#!/bin/sh
set -e
grep -q 'it runs' "$TEST_SRCDIR/small/listing.txt"
test -n "$TEST_TMPDIR"
echo made > "$TEST_UNDECLARED_OUTPUTS_DIR/extra.txt"
