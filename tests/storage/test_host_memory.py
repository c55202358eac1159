"""Free memory of the machine, as Linux says it."""

from unitoken_jax.storage.host_memory import free_host_bytes


def test_free_memory_is_what_linux_calls_available(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal:        8000000 kB\nMemFree:            5000 kB\nMemAvailable:   6000000 kB\n"
    )
    assert free_host_bytes(meminfo) == 6_000_000 * 1024


def test_free_memory_is_unknown_where_there_is_no_such_line_or_file(tmp_path):
    (tmp_path / "old_kernel").write_text("MemTotal: 8000000 kB\n")
    assert free_host_bytes(tmp_path / "old_kernel") is None
    assert free_host_bytes(tmp_path / "no_linux") is None
