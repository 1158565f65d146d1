from pathlib import Path

import pytest

from tests.cli.running import CommandLine


@pytest.fixture
def litereplica(tmp_path: Path) -> CommandLine:
    command_line = CommandLine(tmp_path)
    command_line.configure("")
    return command_line
