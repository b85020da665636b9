"""What becomes of every convolution of a network, as a table."""

from __future__ import annotations

from rnp_deploy.bundle.manifest import ConvManifest

__all__ = ["Explanation"]


class Explanation(tuple[ConvManifest, ...]):
    """One :class:`ConvManifest` per convolution; as text, a table."""

    def __str__(self) -> str:
        total = sum(role.macs for role in self) or 1
        rows = [("convolution", "role", "MACs", "decision", "widths", "why")]
        for role in self:
            decision = "" if role.decision is None else str(role.decision)
            widths = " ".join(map(str, role.widths or ()))
            rows.append((role.conv, role.role, f"{role.macs / total:.1%}", decision, widths, role.reason))
        lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, lengths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)
