//! What a workload is told before it runs, and how it says no.

use core::fmt::{self, Write};
use core::sync::atomic::AtomicU64;

use heapless::{String, Vec};

use crate::{Kernel, Workload};

/// Parameters that a workload may have; those beyond keep no value.
pub const MAX_PARAMETERS: usize = 8;

/// A whole number that can be set on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its key.
    pub name: &'static str,
    /// The value when nothing is said.
    pub default: u64,
    /// The lowest value allowed.
    pub lowest: u64,
    /// The highest value allowed.
    pub highest: u64,
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, default, lowest, highest } = self;
        write!(f, "{name}={lowest}..{highest} ({default})")
    }
}

/// Why a workload cannot run, and what to change; what is longer than fits is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupError(String<200>);

impl SetupError {
    /// A refusal that says `text`.
    #[must_use]
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut words = Cut(String::new());
        // Fails only when it is full, and then it is cut as promised.
        let _ = words.write_fmt(text);
        Self(words.0)
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes characters for as long as there is room.
struct Cut(String<200>);

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|character| self.0.push(character).map_err(|_| fmt::Error))
    }
}

/// What a workload is told before it runs.
pub struct Setup<'a> {
    cpus: usize,
    parameters: &'a [Parameter],
    values: Vec<u64, MAX_PARAMETERS>,
    kernel: Option<&'a dyn Kernel>,
}

impl fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpus, values, .. } = self;
        f.debug_struct("Setup").field("cpus", cpus).field("values", values).finish_non_exhaustive()
    }
}

impl<'a> Setup<'a> {
    /// Checks what was `asked` for against the parameters of `workload`, to be run on
    /// `cpus` CPUs.
    ///
    /// # Errors
    /// A key the workload does not have, a value that is no number, or one out of range;
    /// says what there is.
    #[expect(clippy::result_large_err, reason = "a refusal holds its own text: there is no heap")]
    pub fn check<'b>(
        workload: &'a dyn Workload,
        asked: impl IntoIterator<Item = (&'b str, &'b str)>,
        cpus: usize,
    ) -> Result<Self, SetupError> {
        let parameters = workload.parameters();
        let mut values: Vec<u64, MAX_PARAMETERS> =
            parameters.iter().map(|parameter| parameter.default).take(MAX_PARAMETERS).collect();
        for (key, text) in asked {
            let Some(at) = parameters.iter().position(|parameter| parameter.name == key) else {
                return Err(SetupError::new(format_args!(
                    "no parameter is named `{key}`; there are: {}",
                    List(parameters)
                )));
            };
            let parameter = &parameters[at];
            let range = parameter.lowest..=parameter.highest;
            match text.parse() {
                Ok(value) if range.contains(&value) => {
                    if let Some(slot) = values.get_mut(at) {
                        *slot = value;
                    }
                }
                _ => {
                    let Parameter { lowest, highest, .. } = parameter;
                    return Err(SetupError::new(format_args!(
                        "{key}={text}: give a whole number from {lowest} to {highest}"
                    )));
                }
            }
        }
        Ok(Self { cpus, parameters, values, kernel: None })
    }

    /// The same with memory of `kernel`; called by kernels.
    #[must_use]
    pub fn lent_by(self, kernel: &'a dyn Kernel) -> Self {
        Self { kernel: Some(kernel), ..self }
    }

    /// `words` words of memory, zero, for keys and the like: they are in no dump, and the
    /// capture image writes over them before it touches any disk. What was copied out of them,
    /// into a variable or a register, is not protected.
    ///
    /// # Errors
    /// When there is not so much left; there are 64 KiB in all.
    #[expect(clippy::result_large_err, reason = "a refusal holds its own text: there is no heap")]
    pub fn never_dumped(&self, words: usize) -> Result<&'static [AtomicU64], SetupError> {
        let memory = self.kernel.and_then(|kernel| kernel.never_dumped(words));
        memory.ok_or_else(|| {
            SetupError::new(format_args!(
                "no {words} words left of the memory that is never dumped"
            ))
        })
    }

    /// CPUs there are. The number of units must not depend on it.
    #[must_use]
    pub const fn cpus(&self) -> usize {
        self.cpus
    }

    /// The value of parameter `name`: what was asked for, or its default; 0 for a name that
    /// is not among the workload's parameters.
    #[must_use]
    pub fn value(&self, name: &str) -> u64 {
        let at = self.parameters.iter().position(|parameter| parameter.name == name);
        at.and_then(|at| self.values.get(at)).copied().unwrap_or(0)
    }
}

/// Parameters, separated by commas.
struct List<'a>(&'a [Parameter]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, parameter) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{parameter}")?;
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use crate::{Context, Digest};

    struct Counter;

    impl Workload for Counter {
        fn name(&self) -> &'static str {
            "counter"
        }

        fn parameters(&self) -> &'static [Parameter] {
            &[
                Parameter { name: "n", default: 5, lowest: 1, highest: 10 },
                Parameter { name: "seed", default: 1, lowest: 0, highest: u64::MAX },
            ]
        }

        fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
            Ok(setup.value("n"))
        }

        fn run(&self, _unit: u64, _context: &Context<'_>) -> Digest {
            Digest::number(1)
        }

        fn expected(&self, _round: u64) -> Digest {
            Digest::number(5)
        }
    }

    #[test]
    fn values_are_the_asked_ones_or_the_defaults() {
        let setup = Setup::check(&Counter, [("n", "7")], 3).expect("a value in range");
        assert_eq!((setup.value("n"), setup.value("seed"), setup.value("m")), (7, 1, 0));
        assert_eq!(setup.cpus(), 3);
    }

    #[test]
    fn a_refusal_says_what_there_is() {
        let refused = |key, text| Setup::check(&Counter, [(key, text)], 1).unwrap_err().to_string();
        let wanted = "no parameter is named `m`; there are: n=1..10 (5), \
                      seed=0..18446744073709551615 (1)";
        assert_eq!(refused("m", "1"), wanted);
        assert_eq!(refused("n", "11"), "n=11: give a whole number from 1 to 10");
        assert_eq!(refused("n", "soon"), "n=soon: give a whole number from 1 to 10");
    }

    #[test]
    fn a_long_refusal_is_cut_between_characters() {
        let long = "é".repeat(150);
        assert_eq!(SetupError::new(format_args!("{long}")).to_string(), "é".repeat(100));
    }
}
