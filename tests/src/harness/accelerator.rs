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
        if self == Self::Tcg {
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
    pub(super) fn words(self, processor: &str) -> [String; 4] {
        let [accelerator, processor] = match self {
            Self::Tcg => ["tcg,thread=multi", processor],
            // Some hosts offer the register of this feature and refuse to set it.
            Self::Kvm => ["kvm", "max,-arch-capabilities"],
        };
        ["-accel", accelerator, "-cpu", processor].map(str::to_owned)
    }
}

impl std::str::FromStr for Accelerator {
    type Err = Refusal;

    fn from_str(word: &str) -> Result<Self, Refusal> {
        match word {
            "tcg" => Ok(Self::Tcg),
            "kvm" => Ok(Self::Kvm),
            _ => Err(Refusal::Wrong(format!("unknown accelerator '{word}': tcg, kvm"))),
        }
    }
}
