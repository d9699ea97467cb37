//! The command line of `vmcore`: what can be asked, and nothing of how it is answered.
//!
//! Exit codes: 0 the answer is given and good; 1 there is no answer, the reason is on
//! stderr; 2 the question was wrong; 3 the answer is given and bad (damaged stamps,
//! a checksum that does not match, a crash without a dump), or damage was met on the way to it:
//! what is damaged is named on stderr and in the JSON.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::run()
}
