from tests.bench.kernel_profile import STAGE, device_times, kernel_class, table


def event(cat, name, ts, dur, correlation=None):
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"correlation": correlation}}


TRACE = [
    event("user_annotation", STAGE + "backward", 0, 100),
    event("user_annotation", STAGE + "head", 10, 20),
    event("user_annotation", "another", 20, 5),
    event("cuda_runtime", "cudaLaunchKernel", 15, 1, 1),
    event("cuda_runtime", "cudaLaunchKernel", 40, 1, 2),
    event("cuda_driver", "cuLaunchKernelEx", 300, 1, 3),
    event("kernel", "nvjet_tst_128x256", 1000, 50, 1),
    event("kernel", "void at::native::vectorized_elementwise_kernel<4>", 1060, 2000, 2),
    event("kernel", "flash_bwd_kernel", 2060, 2000, 3),
]


def test_kernels_belong_to_the_innermost_stage_that_launched_them_and_overlaps_count_once():
    assert device_times(TRACE) == [
        ("head", "nvjet_tst_128x256", 50, 0.0),
        ("backward", "void at::native::vectorized_elementwise_kernel<4>", 2000, 10),
        ("outside", "flash_bwd_kernel", 1000, 0.0),
    ]


def test_the_table_adds_up_to_the_time_from_the_first_kernel_to_the_last():
    lines = table({"traceEvents": TRACE}).splitlines()
    (total,) = (line for line in lines if line.startswith("all"))
    assert total.split()[-2:] == ["3.1", "3"]


def test_classes_of_kernels():
    assert [kernel_class(name) for name in ("Memcpy DtoD", "triton_poi_fused", "ncclDevKernel_Reduce", "x")] == [
        "copy",
        "compiled",
        "nccl",
        "other",
    ]
