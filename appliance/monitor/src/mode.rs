//! Which firmware the monitor imitates.

/// Which firmware the monitor imitates. All but [`Mode::Fixed`] exist to test clients with the
/// firmware that is in the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `CPU_OFF` ends the interrupt of an event that its handler has not completed.
    #[default]
    Fixed,
    /// `CPU_OFF` leaves that interrupt active, so the CPU is deaf once it is on again. Trusted
    /// Firmware-A does so: see `docs/findings/psci-cpu-off-inside-sdei.md`.
    Naive,
    /// An event that reaches a masked CPU is lost, where the other modes keep it pending.
    DropWhenMasked,
    /// There is no SDEI, and no node for it in the device tree.
    NoSdei,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 4] = [Self::Fixed, Self::Naive, Self::DropWhenMasked, Self::NoSdei];

    /// Returns the word that selects the mode.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Naive => "naive",
            Self::DropWhenMasked => "drop-when-masked",
            Self::NoSdei => "no-sdei",
        }
    }

    /// Returns the mode that `name` selects.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name().as_bytes() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_selected_by_its_name_alone() {
        for mode in Mode::ALL {
            assert_eq!(Mode::from_name(mode.name().as_bytes()), Some(mode));
        }
        assert_eq!(Mode::from_name(b""), None);
        assert_eq!(Mode::from_name(b"naive "), None);
    }
}
