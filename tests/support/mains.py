"""The recordings of tests/recordings/frequency (and what ships with the simulators), and what can be injected into them."""

import csv
import gzip
import importlib.resources
from array import array
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent.parent / "recordings" / "frequency"
RATE = 400.0
RAIL = 32767.5


def _rows(path):
    with gzip.open(path, "rt", encoding="ascii") as file:
        return list(csv.reader(file))[1:]


def waveform(name="mains_waveform_50hz_400sps_whu092.csv.gz"):
    return np.array([float(row[-1]) for row in _rows(FOLDER / name)])


def slips():
    """{recording and first sample: samples}; each piece is one unbroken stretch."""
    pieces, key, last = {}, None, None
    for recording, sample, adc in _rows(FOLDER / "mains_waveform_50hz_400sps_whu_slips.csv.gz"):
        if last != (recording, int(sample) - 1):
            key = f"{recording}-{sample}"
            pieces[key] = []
        pieces[key].append(float(adc))
        last = (recording, int(sample))
    return {name: np.array(values) for name, values in pieces.items()}


def mains_hours():
    """{recording: [(s, Hz or none)]} of 11 hours."""
    folder = importlib.resources.files("wattmesh_simulators") / "data" / "frequency"
    found = {}
    with importlib.resources.as_file(folder / "mains_frequency_50hz_10hz_whu_derived.csv.gz") as path:
        for recording, deviation, ok in _rows(path):
            rows = found.setdefault(recording, [])
            rows.append((0.1 * len(rows), 50 + int(deviation) / 10_000 if ok == "1" else None, None))
    return found


def iberia():
    with importlib.resources.as_file(importlib.resources.files("wattmesh_simulators") / "data" / "frequency") as folder:
        return folder / "iberia_blackout_20250428_toledo_2s.csv"


def analytic(samples):
    """The samples as a rotating vector (one-sided spectrum), so that its phase can be changed."""
    spectrum = np.fft.fft(samples)
    half = np.zeros(len(samples))
    half[0], half[1 : len(samples) // 2] = 1, 2
    return np.fft.ifft(spectrum * half)


def doubles(values):
    return array("d", np.ascontiguousarray(values, dtype=float))


def jump(vector, at, degrees):
    return np.rint((vector * np.exp(1j * np.deg2rad(degrees) * (np.arange(len(vector)) >= at))).real)


def ramp(vector, at, rate, seconds, samples_per_s=RATE):
    """A true ramp of ``rate`` Hz/s for so long, then the frequency stays."""
    hertz = rate * np.clip((np.arange(len(vector)) - at) / samples_per_s, 0, seconds)
    return np.rint((vector * np.exp(2j * np.pi * np.cumsum(hertz) / samples_per_s)).real)
