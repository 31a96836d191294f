"""What a load depends on, looked at one by one: machine, settings, access, network, object, speed."""

from torchwick.diagnosis.doctor import doctor
from torchwick.diagnosis.findings import Check, Diagnosis

__all__ = ["Check", "Diagnosis", "doctor"]
