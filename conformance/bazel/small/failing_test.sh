#!/bin/sh
echo "expected 1, got 2"
exit 1
