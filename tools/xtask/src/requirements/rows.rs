//! The requirements, in the order of the table.

/// One requirement.
pub struct Row {
    /// Its name in tests.
    pub id: &'static str,
    /// What it demands.
    pub text: &'static str,
}

const fn row(id: &'static str, text: &'static str) -> Row {
    Row { id, text }
}

/// Rows that no test shows yet, and why.
pub const OPEN: &[(&str, &str)] = &[];

/// All of them.
pub const ROWS: &[Row] = &[
    row(
        "R1",
        "The first rung is a maskable interrupt, as a point of synchronisation: a CPU inside a \
         critical section finishes it, drops its locks, and only then stops.",
    ),
    row(
        "R2",
        "Its window is a second by default, watched all the time, and left at once when everyone \
         has acknowledged.",
    ),
    row("R3", "NMI is for CPUs that are really stuck: a healthy machine never sees one."),
    row(
        "R4",
        "One CPU stops the others; whoever crashes at the same time loses and stops itself, through \
         the same function.",
    ),
    row("R5", "An NMI that reaches the stopping CPU means nothing to it."),
    row(
        "R6",
        "NMI is sent only when its handler is in place; if it is not, what the interrupt achieved \
         has to do, and the dump is written all the same.",
    ),
    row(
        "R7",
        "The console says that NMI is about to be used before it is, even while a stuck CPU holds \
         the console's lock.",
    ),
    row(
        "R8",
        "The NMI window is short and bounded, whatever state a CPU is in; who asks for it can wait \
         for ever.",
    ),
    row(
        "R9",
        "The stop has a vector of its own and uses nothing of the ordinary calls between CPUs.",
    ),
    row(
        "R10",
        "No lock is broken open while its holder may still be running; the crash path needs none.",
    ),
    row(
        "R11",
        "What the target is to see is published before the signal; the barrier is inside the \
         function that sends, since a write to the command register does not order earlier stores.",
    ),
    row(
        "R12",
        "A rung is sent only to CPUs that still run: who has acknowledged is looked at again before \
         each, and the last resort comes last.",
    ),
    row("R13", "All ways to stop lead through one function."),
    row(
        "R14",
        "That function is handed the registers to record; a CPU that has none records its own, and \
         the dump says so.",
    ),
    row(
        "R15",
        "In this order: mask interrupts, save registers (the first save wins), leave, acknowledge \
         as the last act.",
    ),
    row(
        "R16",
        "CPUs stopped by the interrupt could be used again; those stopped by force only park, and \
         never return from what stopped them.",
    ),
    row("R17", "A CPU that has stopped itself is sent nothing any more."),
    row("R18", "The function is documented: what each way in passes, and what becomes of the CPU."),
    row(
        "R19",
        "A CPU asks its APIC who it is, and nothing in memory that a crash may have spoilt.",
    ),
    row("R20", "An orderly reset, halt or power-off goes up the same ladder, without a dump."),
    row(
        "R21",
        "A CPU in the middle of a disk request is given time to finish it; only then is the device \
         touched.",
    ),
    row(
        "R22",
        "The same reach without dying: where every CPU stands, by an NMI that returns; the stop's \
         never does.",
    ),
    row(
        "L1",
        "Who acknowledges touches no memory of the crashed system afterwards: an acknowledgement at \
         the start of the stop has hung machines.",
    ),
    row(
        "L2",
        "A halted CPU wakes on NMI, machine check and SMI: its code, stack, tables and page tables \
         stay valid and out of everybody's reach.",
    ),
    row("L3", "The barrier belongs into the primitive, not beside each call."),
    row(
        "L4",
        "INIT only after NMI has failed, never to the boot processor, never to a CPU that was not \
         started, and recorded as the loss of registers it is.",
    ),
    row(
        "L5",
        "The ladder is used for a dump as well, not only for a reset: those who hold locks get time \
         to finish.",
    ),
    row("L6", "A machine check at every CPU, during or after the stop, does not lose the dump."),
    row("L7", "Every CPU that could not be stopped is named in the dump, not only on the console."),
    row("L8", "The dump says of every CPU which rung stopped it, and after how long."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_open_rows_exist() {
        let names: Vec<String> = ROWS.iter().map(|row| row.id.to_owned()).collect();
        let wanted = (1..=22).map(|n| format!("R{n}")).chain((1..=8).map(|n| format!("L{n}")));
        assert_eq!(names, wanted.collect::<Vec<_>>());
        assert!(OPEN.iter().all(|(id, _)| names.iter().any(|name| name == id)));
    }
}
