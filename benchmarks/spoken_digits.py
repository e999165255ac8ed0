# SPDX-License-Identifier: Apache-2.0
"""Make the synthetic spoken digits of task J: espeak-ng speaks, lauscher hears.

espeak-ng (the library inside the package espeakng-loader) says the ten digits in English and in
German with twelve of its voices, at drawn pitches and speeds. lauscher, the model of cochlea, hair
cells and bushy cells that made the Spiking Heidelberg Digits (B. Cramer et al., IEEE Transactions
on Neural Networks and Learning Systems 33 (2022) 2744), turns the sound into spikes. No person is
heard. The set is made once and kept in benchmarks/_tasks/spoken_digits.npz; this program and its
packages are not needed to train on it:

    python -m pip install espeakng-loader lauscher
    python benchmarks/spoken_digits.py spoken_digits.npz
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WORDS = {
    "en": "zero one two three four five six seven eight nine".split(),
    "de": "null eins zwei drei vier fünf sechs sieben acht neun".split(),
}
#: Variants of the voices; the last four are held out.
VOICES = "m1 m2 m3 m4 f1 f2 f3 klatt m5 m7 f4 klatt2".split()
TIMES = 4  # how often a voice says each word
CHANNELS = 70
BIN = 0.005  # seconds of a step
STEPS = 112
SAMPLES = 12_600  # of sound; the rest of a word's is silence


def speaker() -> Callable[[str, str, int, int], tuple[np.ndarray, int]]:
    """A function of words, voice, pitch (0 to 100) and words a minute: samples in [-1, 1], rate."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    heard: list[np.ndarray] = []
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )

    @kind
    def receive(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    synchronous, utf8, pitch_is, rate_is = 2, 1, 3, 1
    rate = library.espeak_Initialize(
        synchronous, 0, str(espeakng_loader.get_data_path()).encode(), 0
    )
    library.espeak_SetSynthCallback(receive)
    library.receive = receive  # the library calls it: it has to live as long

    def speak(words: str, voice: str, pitch: int, speed: int) -> tuple[np.ndarray, int]:
        heard.clear()
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"no such voice: {voice}")
        library.espeak_SetParameter(rate_is, speed, 0)
        library.espeak_SetParameter(pitch_is, pitch, 0)
        text = words.encode()
        library.espeak_Synth(text, len(text) + 1, 0, 0, 0, utf8, None, None)
        return np.concatenate(heard) / 2**15, rate

    return speak


def listener() -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """A function of samples and rate: times in seconds and channels of spikes, by lauscher.

    All sounds are filled up with silence to one length, so that the response of the membrane is
    computed once, and the loops over time of hair cells and bushy cells are compiled: lauscher's
    several seconds for a word become a fraction of one.
    """
    import numba
    from lauscher.audiowaves import MonoAudioWave
    from lauscher.transformations import (
        BasilarMembrane,
        BushyCell,
        HairCell,
        HanningWindow,
        RmsNormalizer,
    )
    from numba.core import types
    from numba.extending import overload

    @overload(np.max)
    def larger(two):  # type: ignore[no-untyped-def]  # lauscher writes np.max([a, 0])
        return (lambda two: max(two[0], two[1])) if isinstance(two, types.List) else None

    def compiled(cell: Any, method: Callable[..., Any]) -> Callable[..., Any]:
        fast = numba.njit(method)
        fields = {name: float(value) for name, value in vars(cell).items()}
        self = namedtuple("self", fields)(**fields)  # type: ignore[misc]
        return lambda *args: fast(self, *args)

    hair, bushy, membrane = HairCell(), BushyCell(), BasilarMembrane(channels=CHANNELS)
    meddis, fire = compiled(hair, HairCell._meddis), compiled(bushy, BushyCell._lif)

    @cache
    def response(rate: int) -> np.ndarray:
        """Velocity of the membrane [CHANNELS, frequencies] for sounds of :data:`SAMPLES`."""
        omega = 2 * np.pi * np.linspace(1, rate // 2, SAMPLES // 2 + 1)
        return np.array([membrane._v(omega, place) for place in membrane.ch])

    def hear(samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
        sound = MonoAudioWave(samples, rate)
        sound = sound.transform(RmsNormalizer(0.3)).transform(HanningWindow())
        spectrum = np.fft.fft(sound.samples, SAMPLES)[: SAMPLES // 2 + 1]
        fired, half = [], rate // 2
        for velocity in np.real(np.fft.ifft(response(rate) * spectrum)):
            drive = bushy._sample(meddis(velocity, float(half)), half)
            fired.append(fire(drive.astype(np.float64), float(half)))
        steps, channels = np.nonzero(np.array(fired).T)
        return steps / half, channels

    return hear


def utterances(times: int, voices: Sequence[str]) -> Iterator[tuple[np.ndarray, int, int, float]]:
    """Spikes [STEPS, CHANNELS], class (German behind English), number of the voice, seconds."""
    rng = np.random.default_rng(0)
    np.random.seed(0)  # lauscher draws from it
    speak, hear = speaker(), listener()
    for number, voice in enumerate(voices):
        for offset, (language, words) in zip((0, 10), WORDS.items(), strict=True):
            for digit, word in enumerate(words):
                for _ in range(times):
                    pitch, speed = rng.integers(30, 71), rng.integers(150, 211)
                    sound, rate = speak(word, f"{language}+{voice}", int(pitch), int(speed))
                    sound = sound[: np.flatnonzero(np.abs(sound) > 0.01)[-1] + 1]
                    when, channels = hear(sound, rate)
                    spikes = np.zeros((STEPS, CHANNELS), bool)
                    steps = (when / BIN).astype(int)
                    inside = steps < STEPS
                    spikes[steps[inside], channels[inside]] = True
                    yield spikes, offset + digit, number, len(sound) / rate


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the set and return the exit status."""
    parser = argparse.ArgumentParser(prog="spoken_digits.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path)
    parser.add_argument("--times", type=int, default=TIMES, help="how often a voice says a word")
    parser.add_argument("--voices", nargs="+", default=VOICES)
    chosen = parser.parse_args(arguments)
    found, start = [], time.perf_counter()
    for found_one in utterances(chosen.times, chosen.voices):
        found.append(found_one)
        if len(found) % 40 == 0:
            print(len(found), f"{time.perf_counter() - start:.0f} s", flush=True)
    spikes, labels, voices, seconds = map(np.array, zip(*found, strict=True))
    print(f"{len(labels)} words of {seconds.min():.2f} to {seconds.max():.2f} s; "
          f"{spikes.mean():.3f} spikes per step and channel")  # fmt: skip
    packed = np.packbits(spikes.reshape(len(spikes), -1), axis=1)
    np.savez_compressed(chosen.file, spikes=packed, labels=labels.astype(np.uint8),
                        voices=voices.astype(np.uint8))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
