"""What a reader imports in tests to start slowly."""

import time

time.sleep(3)
