//! Every fault and every wedge there is, and what a machine must leave behind when they meet.
//!
//! | file | |
//! |---|---|
//! | `faults.rs` | one line for each `crash=` and `wedge=`: its cause, who crashes, who is stopped how |
//! | `scenario.rs` | one of each on a number of CPUs: does it mean anything, and how is it booted |
//! | `finding.rs` | what was left, held against what the lines promise |
//! | `choice.rs` | all scenarios, and the few that stand for them in the tests |

mod choice;
mod faults;
mod finding;
mod scenario;

pub use choice::{all, few};
pub use faults::{CRASHES, Class, Crash, Strikes, WEDGES, Wedge, crash, wedge};
pub use finding::Finding;
pub use scenario::{Scenario, Side};
