"""What a node is told: settings read once at the start, checked, then frozen.

Knows every key, its unit, its default and what must fit together. Does not know what the settings are used for, and
looks at nothing on the machine besides the file and the environment: whether a directory is free is for `doctor` and
for the start of a node to find out.
"""

from litereplica.config.load import WrongSettings, find_file, load_settings
from litereplica.config.proxy import ProxySettings
from litereplica.config.settings import (
    ConsulSettings,
    DataSettings,
    HttpSettings,
    LeaseSettings,
    LogSettings,
    MountSettings,
    NodeSettings,
    PrimarySettings,
    ReplicationSettings,
    RetentionSettings,
    Settings,
    StaticSettings,
    TlsSettings,
    WritesSettings,
)
from litereplica.config.show import settings_document
from litereplica.config.units import Address

__all__ = [
    "Address",
    "ConsulSettings",
    "DataSettings",
    "HttpSettings",
    "LeaseSettings",
    "LogSettings",
    "MountSettings",
    "NodeSettings",
    "PrimarySettings",
    "ProxySettings",
    "ReplicationSettings",
    "RetentionSettings",
    "Settings",
    "StaticSettings",
    "TlsSettings",
    "WritesSettings",
    "WrongSettings",
    "find_file",
    "load_settings",
    "settings_document",
]
