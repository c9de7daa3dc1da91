"""Everything about the package is written once, in `settings.ini`: this only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).resolve().parent
ini = ConfigParser(delimiters='=')
with open(root/'settings.ini', encoding='utf-8') as f: ini.read_file(f)
cfg = ini['DEFAULT']
lib = cfg['lib_path']
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature',
            '7 - Inactive']
pythons = ['3.10', '3.11', '3.12']   # those that constraints.txt was resolved for, and that the tests run on

class BuildWithNotebook(build_py):
    "A package outside its repository has no nbs/: it takes along the notebook that a sweep executes"
    def run(self):
        super().run()
        if not self.editable_mode: self.copy_file(str(root/cfg['nbs_path']/'03_split.ipynb'), str(Path(self.build_lib)/lib))

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    project_urls=dict(Documentation=cfg['doc_host'] + cfg['doc_baseurl'],
                      Changes=f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"),
    license_expression='Apache-2.0', license_files=['LICENSE'],
    classifiers=[f"Development Status :: {statuses[int(cfg['status'])-1]}", f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", *(f'Programming Language :: Python :: {v}' for v in pythons),
                 'Topic :: Scientific/Engineering :: Artificial Intelligence',
                 'Topic :: Scientific/Engineering :: Image Recognition'],
    python_requires=f">={cfg['min_python']}", packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={f'{lib}.sweep': ['report.css']},
    install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split() for k in ('dev', 'slurm', 'distributed', 'lsun', 'explore')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d'],
                  'papermill.engine': [f'{lib}={lib}.sweep.engine:SynthrobEngine']},
    cmdclass=dict(build_py=BuildWithNotebook), zip_safe=False)
