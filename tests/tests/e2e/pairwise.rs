//! Faults and bad states in pairs, on 1, 2, 4 and 8 CPUs, on the boot processor and on
//! another: a fixed few that stand for the whole matrix, which `cargo xtask soak --matrix` runs.
//!
//! Each has to end with the verdict, the cause and the rung per CPU that the catalogue
//! promises, every wedged CPU in its loop.

use e2e::catalogue::{self, Class, Finding};
use e2e::harness;

use crate::story::folder;

/// Runs those of the few that crash by a fault of `class`.
fn run(class: Class) {
    let few = catalogue::few();
    let chosen: Vec<_> = few.iter().filter(|(scenario, _)| scenario.crash.class == class).collect();
    assert!(!chosen.is_empty(), "no scenario of {class:?}");
    let mut wrong = Vec::new();
    for (scenario, side) in chosen {
        let name: String = scenario
            .to_string()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let options = scenario.options(folder().join(name));
        let outcome = harness::run(&options, &mut |_| ()).expect("a run");
        let found = Finding::read(scenario, &outcome);
        println!("{scenario} ({}): {} {:?}", side.name(), found.verdict, found.stopped);
        if !found.problems.is_empty() {
            wrong.push(format!("{scenario}: {}", found.problems.join("; ")));
            println!("{}", outcome.console.tail(30));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $class:ident;)*) => {$(
        $(#[$doc])*
        #[test]
        #[ignore = "boots QEMU: run cargo xtask test"]
        fn $name() {
            run(Class::$class);
        }
    )*

        /// No class is left out.
        #[test]
        fn every_class_has_a_test() {
            assert_eq!([$(Class::$class),*], Class::ALL);
        }
    };
}

classes! {
    /// Proves R12, L4, L7.
    panics = Panic;
    /// Proves R12, R14.
    exceptions = Exception;
    /// Proves R12.
    protected_memory = Protection;
    /// Proves R12.
    inside_handlers = Handler;
    /// Proves R4, R12.
    races = Race;
    /// Proves R12.
    noticed_by_another = Noticed;
}
