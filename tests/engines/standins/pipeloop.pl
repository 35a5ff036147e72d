#!/usr/bin/env python3
"""photpipe's pipeloop.pl, stood in for."""

import sys

from photpipe_standin import pipeloop

pipeloop(sys.argv[1:])
