"""The stack of Rubin and HSC: hscPipe and the LSST Science Pipelines, run CCD by CCD."""
