#!/bin/sh
echo "before the end"
sleep 120
