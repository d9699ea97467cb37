//! The values that are words.

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// All of them, a space behind each.
            pub(super) const WORDS: &'static str = concat!($($word, " "),+);

            pub(super) fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }

            /// The word on the command line.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

words! {
    /// What to do when the workloads have ended.
    OnFinish {
        /// Switch the machine off.
        Poweroff = "poweroff",
        /// Stay halted.
        Halt = "halt",
        /// Stay up and wait.
        Idle = "idle",
    }
}

words! {
    /// What to do after a crash.
    CrashPolicy {
        /// Switch the machine off.
        Poweroff = "poweroff",
        /// Reset it.
        Reboot = "reboot",
        /// Stay halted.
        Halt = "halt",
    }
}

words! {
    /// Where a run leaves word of how far it came, for the next one.
    Breadcrumb {
        /// In bytes of the calendar clock's memory.
        Cmos = "cmos",
        /// Nowhere.
        Off = "off",
    }
}

words! {
    /// Whether something is done.
    Switch {
        /// It is.
        On = "on",
        /// It is not.
        Off = "off",
    }
}

words! {
    /// How far a dump goes.
    Pages {
        /// What matters most.
        Mini = "mini",
        /// What is in use.
        Used = "used",
        /// Everything.
        All = "all",
    }
}

words! {
    /// What the other CPUs do while stops are measured.
    Load {
        /// They are halted.
        Idle = "idle",
        /// They compute.
        Busy = "busy",
        /// First the one, then the other.
        Both = "both",
    }
}

words! {
    /// How pages are stored.
    Storing {
        /// As they are.
        Raw = "raw",
        /// Compressed.
        Lz4 = "lz4",
        /// Whichever is faster.
        Auto = "auto",
    }
}

words! {
    /// What happens when every slot of the dump area holds a dump.
    Slots {
        /// Nothing is lost: the next target takes the dump.
        Keep = "keep",
        /// The oldest goes, collected or not.
        OverwriteOldest = "overwrite-oldest",
    }
}
