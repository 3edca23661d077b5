import pytest

from engine.runtime.processor import CpuProfile, cpu_profile


@pytest.mark.parametrize(
    ("flags", "dot", "saturates"),
    [
        ("sse4_1", "none", False),
        ("sse4_1 avx avx2 fma", "avx2", True),
        ("avx2 avx512f avx512bw avx512vl", "avx2", True),
        ("avx2 avx_vnni", "avx_vnni", False),
        ("avx2 avx512f avx512_vnni", "avx512_vnni", False),
        ("avx2 avx512f avx512_vnni amx_tile amx_int8", "amx", False),
    ],
)
def test_x86(flags, dot, saturates):
    profile = cpu_profile(f"processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu {flags} rdtscp\n")
    assert (profile.name, profile.dot, profile.saturates_u8s8) == ("Some CPU @ 2 GHz", dot, saturates)
    assert set(profile.flags) == set(flags.split())


@pytest.mark.parametrize(
    ("features", "dot"), [("fp asimd", "none"), ("asimd asimddp", "neon_dot"), ("asimd asimddp i8mm bf16", "neon_i8mm")]
)
def test_arm(features, dot):
    profile = cpu_profile(f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n")
    assert (profile.dot, profile.saturates_u8s8) == (dot, False)
    assert "0xd0c" in profile.name


def test_this_machine():
    profile = cpu_profile()
    assert profile.name
    assert profile.cores >= 1


def test_by_hand():
    assert CpuProfile("elsewhere", (), 4, "avx2").saturates_u8s8
