"""Packaging: everything that describes the package is read from settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license=settings["license"],
    keywords=settings["keywords"].split(),
    classifiers=["Programming Language :: Python :: 3", "Programming Language :: Python :: 3 :: Only"],
    packages=find_packages(
        include=[settings["lib_name"], settings["lib_name"] + ".*"],
        exclude=[f"{settings['lib_name']}.{name}*" for name in ("course", "recipes", "experiments")],  # need a clone
    ),
    package_data={settings["lib_name"]: ["assets/**/*"]},
    include_package_data=False,  # what package_data names and no more
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={
        name: settings[f"{name}_requirements"].split()
        for name in ("dev", "serve", "gguf", "browser", "phone", "ray", "docs", "course")
    },
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "personal_llm.commands": settings["commands"].split(),
        "personal_llm.targets": settings["targets"].split(),
        "personal_llm.formats": settings["formats"].split(),
        "personal_llm.selectors": settings["selectors"].split(),
        "personal_llm.spaces": settings["spaces"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
)
