import random
import subprocess
import sys

import pytest

from litereplica.ltx.compression import codec
from litereplica.ltx.format import stored_limit


def test_no_compression_library_is_loaded_until_a_record_asks_for_it() -> None:
    program = (
        "import sys, litereplica.ltx.encode, litereplica.ltx.decode\n"
        "print(sorted({'lz4', 'zstandard'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert output.stdout == "[]\n"


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("raw_bytes", [516, 1032, 65540, (1 << 20) + 8192])
def test_what_cannot_be_compressed_stays_within_the_limit(compression: str, raw_bytes: int) -> None:
    how = codec(compression)
    assert how is not None
    raw = random.Random(7).randbytes(raw_bytes)
    stored = how.compress(raw)
    assert raw_bytes < len(stored) <= stored_limit(raw_bytes)
    assert how.decompress(memoryview(stored), raw_bytes) == raw
