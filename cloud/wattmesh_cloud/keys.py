"""What the cloud's processes sign with."""

from __future__ import annotations

from wattmesh_a2a.signing import KeyRing, Signer

from wattmesh_cloud.config import CloudConfig


def cloud_keys(config: CloudConfig) -> Signer:
    """Keys shared with the sites, or the cloud's own with its certificate."""
    if config.keys is not None:
        return KeyRing.of_folder(config.keys)
    from wattmesh_a2a.certificates import CertificateKeys

    model = config.model
    assert model.certificate is not None
    assert model.key is not None
    assert model.ca is not None
    return CertificateKeys(model.certificate, model.key, model.ca, model.crl)
