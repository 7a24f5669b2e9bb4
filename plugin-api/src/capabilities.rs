//! What a backend promises beyond the clauses every backend keeps.

use std::fmt;

/// A set of promises, as bits of the ABI's `capabilities` word.
///
/// A plugin's table states the most it can offer; an opened backend states what it offers with
/// the configuration it was opened with, which may be less.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// No promise beyond the clauses.
    pub const NONE: Self = Self(0);
    /// Acknowledged writes survive power loss (C2) and reopening (C11).
    pub const DURABLE: Self = Self(1);
    /// Compare-and-swap is linearizable across processes, not only across threads (C6).
    pub const MULTI_PROCESS: Self = Self(2);

    /// The bits that are no promises but requirements: a host that does not know one of them must
    /// not load the plugin. Unknown promises, in the other bits, are ignored.
    pub const REQUIREMENTS: u64 = 0xffff_ffff_0000_0000;

    const NAMES: [(Self, &'static str); 2] =
        [(Self::DURABLE, "durable"), (Self::MULTI_PROCESS, "multi_process")];

    /// The set of these bits; bits without a name here are kept.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits, as they cross the ABI.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the promises of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether every promise of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of the promises in this set that have one.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(bit, _)| self.contains(*bit)).map(|(_, name)| name)
    }
}

impl fmt::Display for Capabilities {
    /// The names, separated by commas, or `none`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names().collect();
        formatter.write_str(if names.is_empty() { "none" } else { "" })?;
        formatter.write_str(&names.join(", "))
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Capabilities({self})")
    }
}
