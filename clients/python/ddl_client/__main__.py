import sys

from ddl_client.command_line import main

sys.exit(main())
