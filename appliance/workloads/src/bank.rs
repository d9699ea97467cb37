//! `bank`: moves money between accounts on all CPUs, each account under its own lock.
//!
//! `workload=bank,accounts=64,transfers=2000,seed=1`. A unit is `transfers` random transfers,
//! drawn from the seed, the round and the unit. Money is read and written under the two
//! locks in separate steps, so a lock that lets two CPUs in loses some.
//!
//! `key=` gives the bank a key of 64 words, made of that number, in memory that is never
//! dumped; 0 is none.
//!
//! What proves the result: the total is conserved, and afterwards one CPU replays every
//! transfer of the round in a book of its own. A transfer adds here what it takes there,
//! whatever the balance, so the order in which the CPUs made them does not matter, and
//! every account has to agree with the book. The digest is made of all balances.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use epitaph_workload::{Context, Digest, LOCKS, Parameter, Random, Setup, SetupError, Workload};

/// Units in a round.
const UNITS: u64 = 64;
/// What each account starts with.
const START: u64 = 1_000_000;
/// A transfer moves less than this.
const MOST: u64 = 1_000;
/// Words of the key.
const KEY_WORDS: usize = 64;
/// Transfers between two signs of life.
const BEAT_TRANSFERS: u64 = 64;

/// The workload.
#[derive(Debug)]
pub struct Bank {
    accounts: AtomicU64,
    transfers: AtomicU64,
    seed: AtomicU64,
    /// Transfers made so far.
    made: AtomicU64,
    /// Account K under lock K.
    balances: [AtomicU64; LOCKS],
    /// What the balances have to be, by replay on one CPU.
    book: [AtomicU64; LOCKS],
}

/// Money that moves.
struct Transfer {
    from: usize,
    to: usize,
    amount: u64,
}

impl Transfer {
    /// The next one, between two different of `accounts` accounts.
    fn draw(random: &mut Random, accounts: u64) -> Self {
        let from = random.below(accounts);
        let to = (from + 1 + random.below(accounts - 1)) % accounts;
        Self { from: from as usize, to: to as usize, amount: random.below(MOST) }
    }

    /// Moves it, in steps that another CPU must not come between.
    fn make(&self, balances: &[AtomicU64]) {
        let (from, to) = (&balances[self.from], &balances[self.to]);
        let (left, right) = (from.load(Ordering::Relaxed), to.load(Ordering::Relaxed));
        from.store(left.wrapping_sub(self.amount), Ordering::Relaxed);
        to.store(right.wrapping_add(self.amount), Ordering::Relaxed);
    }
}

/// A digest of all balances, and of which account has which.
fn digest(balances: &[AtomicU64]) -> Digest {
    let mix =
        |sum: u64, balance: &AtomicU64| Random::new(sum ^ balance.load(Ordering::Relaxed)).next();
    Digest::number(balances.iter().fold(0, mix))
}

fn total(balances: &[AtomicU64]) -> u64 {
    let sum = |sum: u64, balance: &AtomicU64| sum.wrapping_add(balance.load(Ordering::Relaxed));
    balances.iter().fold(0, sum)
}

impl Bank {
    /// Not prepared yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            accounts: AtomicU64::new(0),
            transfers: AtomicU64::new(0),
            seed: AtomicU64::new(0),
            made: AtomicU64::new(0),
            balances: [const { AtomicU64::new(0) }; LOCKS],
            book: [const { AtomicU64::new(0) }; LOCKS],
        }
    }

    fn accounts(&self) -> u64 {
        self.accounts.load(Ordering::Relaxed).min(LOCKS as u64)
    }

    /// Calls `each` with every transfer of a unit.
    fn transfers(&self, unit: u64, context: &Context<'_>, mut each: impl FnMut(&Transfer)) {
        let seed = self.seed.load(Ordering::Relaxed);
        let mut random = Random::for_unit(seed, context.round(), unit);
        for number in 0..self.transfers.load(Ordering::Relaxed) {
            if number % BEAT_TRANSFERS == 0 {
                context.beat();
            }
            each(&Transfer::draw(&mut random, self.accounts()));
        }
    }
}

impl Default for Bank {
    fn default() -> Self {
        Self::new()
    }
}

/// Keeps the bank's key, when it has one, where no dump finds it.
#[expect(clippy::result_large_err, reason = "a refusal holds its own text: there is no heap")]
fn keep_key(setup: &Setup<'_>) -> Result<(), SetupError> {
    let mut word = setup.value("key");
    if word == 0 {
        return Ok(());
    }
    for place in setup.never_dumped(KEY_WORDS)? {
        // A Weyl sequence: every word another, all of them known to who knows the first.
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0xbf58_476d_1ce4_e5b9);
        place.store(word, Ordering::Relaxed);
    }
    Ok(())
}

impl Workload for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[
            Parameter { name: "accounts", default: 64, lowest: 2, highest: LOCKS as u64 },
            Parameter { name: "transfers", default: 2_000, lowest: 1, highest: 1_000_000 },
            Parameter { name: "seed", default: 1, lowest: 0, highest: u64::MAX },
            Parameter { name: "key", default: 0, lowest: 0, highest: u64::MAX },
        ]
    }

    fn prepare(&self, setup: &Setup<'_>) -> Result<u64, SetupError> {
        keep_key(setup)?;
        self.accounts.store(setup.value("accounts"), Ordering::Relaxed);
        self.transfers.store(setup.value("transfers"), Ordering::Relaxed);
        self.seed.store(setup.value("seed"), Ordering::Relaxed);
        for balance in self.balances.iter().chain(&self.book) {
            balance.store(START, Ordering::Relaxed);
        }
        Ok(UNITS)
    }

    fn run(&self, unit: u64, context: &Context<'_>) -> Digest {
        self.transfers(unit, context, |transfer| {
            // The lower lock first, everywhere: or two CPUs could wait for each other.
            let first = transfer.from.min(transfer.to);
            let second = transfer.from.max(transfer.to);
            let under_both = || context.locked(second, || transfer.make(&self.balances));
            if context.locked(first, under_both).flatten().is_some() {
                self.made.fetch_add(1, Ordering::Relaxed);
            }
        });
        Digest::default()
    }

    fn finish(&self, _merged: Digest, context: &Context<'_>) -> Digest {
        for unit in 0..UNITS {
            self.transfers(unit, context, |transfer| transfer.make(&self.book));
        }
        let accounts = self.accounts() as usize;
        let (balances, book) = (&self.balances[..accounts], &self.book[..accounts]);
        let (found, right) = (total(balances), START.wrapping_mul(accounts as u64));
        if found != right {
            context.log(format_args!("bank: the total is {found}, and was {right}"));
        }
        let differs = balances.iter().zip(book).position(|(balance, entry)| {
            balance.load(Ordering::Relaxed) != entry.load(Ordering::Relaxed)
        });
        if let Some(account) = differs {
            context.log(format_args!("bank: account {account} is the first to differ"));
        }
        digest(balances)
    }

    fn expected(&self, _round: u64) -> Digest {
        digest(&self.book[..self.accounts() as usize])
    }

    fn last_words(&self, words: &mut dyn fmt::Write) -> fmt::Result {
        let accounts = self.accounts();
        let off = total(&self.balances[..accounts as usize])
            .wrapping_sub(START.wrapping_mul(accounts)) as i64;
        let made = self.made.load(Ordering::Relaxed);
        write!(words, "{accounts} accounts, {made} transfers made, {off} more money than there was")
    }
}

#[cfg(test)]
mod tests {
    use epitaph_workload::host;

    use super::*;

    fn run(cpus: usize) -> Result<Vec<Digest>, String> {
        host::run(&Bank::new(), &[("accounts", "3"), ("transfers", "500"), ("seed", "7")], cpus, 3)
    }

    #[test]
    fn balances_do_not_depend_on_the_number_of_cpus() {
        let alone = run(1).expect("a conserved total");
        // Rounds go on from each other, so they differ.
        assert_ne!(alone[0], alone[1]);
        assert_eq!(run(2), Ok(alone.clone()));
        assert_eq!(run(4), Ok(alone));
    }

    #[test]
    fn money_that_is_lost_is_noticed() {
        let bank = Bank::new();
        host::run(&bank, &[], 1, 1).expect("a conserved total");
        bank.balances[0].fetch_sub(1, Ordering::Relaxed);
        let mut words = String::new();
        bank.last_words(&mut words).expect("a string takes all");
        assert!(words.contains("-1 more money"), "{words}");
        let accounts = bank.accounts() as usize;
        assert_ne!(digest(&bank.balances[..accounts]), bank.expected(0));
    }
}
