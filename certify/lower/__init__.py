"""Lower estimates: Jacobians, witnesses and ascents."""
