import sys

from musc.cli import main

sys.exit(main())
