"""What pyproject.toml cannot state: ``configs/`` as ``uumamba.configs``, and the native scan, optional to build."""

import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("uumamba/ops/native")
FLAGS = [
    *("-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden"),
    # Each lets the compiler keep arithmetic in vectors and fused; none reorders or drops an operation.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
]
SOURCES = {"dispatch.cpp": [], "scan_plain.cpp": []}
if platform.machine() in ("x86_64", "AMD64"):
    SOURCES |= {
        "scan_avx2.cpp": ["-mavx2", "-mfma"],
        "scan_avx512.cpp": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
    }


class BuildNativeScan(build_ext):
    """One object an instruction set, each with its own flags, joined in one library; which runs is chosen there.

    OpenMP is compiled for and not linked: at run time the library uses the one runtime that torch has loaded.
    """

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; setuptools turns a failure into a warning, for the extension is optional."""
        for name, flags in SOURCES.items():
            ext.extra_objects += self.compiler.compile(
                [str(NATIVE / name)], output_dir=self.build_temp, extra_postargs=[*FLAGS, *flags]
            )
        ext.sources = []
        super().build_extension(ext)


setup(
    packages=[*find_packages(include=["uumamba", "uumamba.*", "data_prep", "data_prep.*"]), "uumamba.configs"],
    package_dir={"uumamba.configs": "configs"},
    ext_modules=[
        Extension(
            "uumamba.ops._scan_native",
            sources=[str(NATIVE / name) for name in SOURCES],
            depends=sorted(map(str, NATIVE.glob("*.h"))),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNativeScan},
)
