//! Who executes the machine's instructions.

use std::fs::File;

use super::Refusal;

const KVM: &str = "/dev/kvm";

/// What QEMU runs the processors with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU itself, on every host the same.
    #[default]
    Tcg,
    /// QEMU itself, with a clock that counts instructions, one a nanosecond: what a run has to
    /// do, however fast the host does it.
    Icount,
    /// The host's kernel: real processors, where they are the host's, and another reading of
    /// the architecture than QEMU's in any case.
    Kvm,
}

impl Accelerator {
    /// Refuses one that this host does not let us use.
    ///
    /// # Errors
    /// Says what is missing.
    pub(super) fn check(self) -> Result<(), Refusal> {
        if self != Self::Kvm {
            return Ok(());
        }
        File::options().read(true).write(true).open(KVM).map(drop).map_err(|why| {
            Refusal::Wrong(format!(
                "--accel kvm: {KVM}: {why}; load the module, or join the group that owns it, \
                 or leave it at --accel tcg"
            ))
        })
    }

    /// QEMU's words for it, with the processor called `processor` by those that emulate one.
    pub(super) fn words(self, processor: &str) -> Vec<String> {
        let words = match self {
            Self::Tcg => format!("-accel tcg,thread=multi -cpu {processor}"),
            // With a clock like that QEMU gives up when the timer of an x2APIC is read: it takes
            // those registers for none that ask what time it is.
            Self::Icount => format!(
                "-accel tcg,thread=single -icount shift=0,align=off,sleep=off \
                 -cpu {processor},-x2apic"
            ),
            // Some hosts offer the register of this feature and refuse to set it.
            Self::Kvm => "-accel kvm -cpu max,-arch-capabilities".to_owned(),
        };
        words.split_whitespace().map(str::to_owned).collect()
    }
}

impl std::str::FromStr for Accelerator {
    type Err = Refusal;

    fn from_str(word: &str) -> Result<Self, Refusal> {
        match word {
            "tcg" => Ok(Self::Tcg),
            "icount" => Ok(Self::Icount),
            "kvm" => Ok(Self::Kvm),
            _ => Err(Refusal::Wrong(format!("unknown accelerator '{word}': tcg, icount, kvm"))),
        }
    }
}
