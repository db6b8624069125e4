from .driver import Driver
