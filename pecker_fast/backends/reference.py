"""The specification in plain torch: what every other backend must agree with, on any device."""

from __future__ import annotations
