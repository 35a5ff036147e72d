#!/usr/bin/env python3
"""photpipe's pipeview.pl, stood in for."""

import sys

from photpipe_standin import pipeview

pipeview(sys.argv[1:])
