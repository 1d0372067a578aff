//! What is known of the kernel between two looks at it.
//!
//! A node of a large cluster has thousands of routes, neighbours and forwarding entries, and to read them all because
//! one is to change costs more than the change. So they are read once and then followed: a step that the kernel has
//! agreed to is noted, and what the kernel announces is compared with what is believed. Whatever contradicts that, or
//! cannot be noted exactly, makes its part doubtful, and what is doubtful is read again. So is everything, every now
//! and then: nothing rests on the kernel's announcing each change.
//!
//! To compare is enough, whoever changes what in between: the changes of one entry are announced in their order, and
//! the last announcement says how the entry is left. If that agrees with what is believed, so does the kernel.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::{BitOr, BitOrAssign};

use encap::MacAddr;

use super::{Device, Observed, Op, Route, RouteKey};

/// Those parts of what is observed that have thousands of entries. All else is few and read each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// [`Observed::routes`].
    pub routes: bool,
    /// [`Observed::neighbours`].
    pub neighbours: bool,
    /// [`Observed::fdb`].
    pub fdb: bool,
}

impl Parts {
    /// Each of them.
    pub const ALL: Self = Self { routes: true, neighbours: true, fdb: true };
    /// None of them.
    pub const NONE: Self = Self { routes: false, neighbours: false, fdb: false };
    /// Routes only.
    pub const ROUTES: Self = Self { routes: true, ..Self::NONE };
    /// Neighbours only.
    pub const NEIGHBOURS: Self = Self { neighbours: true, ..Self::NONE };
    /// Forwarding entries only.
    pub const FDB: Self = Self { fdb: true, ..Self::NONE };

    /// Whether these are in `others` too.
    fn within(self, others: Self) -> bool {
        others | self == others
    }
}

impl BitOr for Parts {
    type Output = Self;

    fn bitor(self, others: Self) -> Self {
        Self {
            routes: self.routes || others.routes,
            neighbours: self.neighbours || others.neighbours,
            fdb: self.fdb || others.fdb,
        }
    }
}

impl BitOrAssign for Parts {
    fn bitor_assign(&mut self, others: Self) {
        *self = *self | others;
    }
}

/// How the kernel says that an entry is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// A route that is looked at.
    Route {
        /// Which.
        key: RouteKey,
        /// Which of that key.
        route: Route,
        /// Not removed.
        there: bool,
    },
    /// A neighbour on a device of ours.
    Neighbour {
        /// The device.
        device: Device,
        /// Its address.
        ip: IpAddr,
        /// Where it is; `None` when there is no permanent entry for it.
        mac: Option<MacAddr>,
    },
    /// A forwarding entry on a device of ours.
    Fdb {
        /// The device.
        device: Device,
        /// The VTEP.
        mac: MacAddr,
        /// The node that it is on.
        to: IpAddr,
        /// Permanent, and not removed.
        there: bool,
    },
}

impl Announced {
    /// What it is one of.
    pub fn part(&self) -> Parts {
        match self {
            Self::Route { .. } => Parts::ROUTES,
            Self::Neighbour { .. } => Parts::NEIGHBOURS,
            Self::Fdb { .. } => Parts::FDB,
        }
    }
}

/// What the kernel is believed to hold.
#[derive(Debug, Clone)]
pub struct Belief {
    observed: Observed,
    doubt: Parts,
    /// What was doubtful when the look that goes on was begun.
    reason: Parts,
}

impl Default for Belief {
    fn default() -> Self {
        Self { observed: Observed::default(), doubt: Parts::ALL, reason: Parts::NONE }
    }
}

impl Belief {
    /// What is believed. Right after a look all of it is known.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What is to be read again.
    pub fn doubtful(&self) -> Parts {
        self.doubt
    }

    /// Makes parts doubtful.
    pub fn doubt(&mut self, parts: Parts) {
        self.doubt |= parts;
    }

    /// Begins a look: devices and addresses are read already; says which parts to read as well. Where a device or an
    /// address is not what it was, the kernel may have taken other things along.
    pub fn begin(&mut self, seen: &Observed, everything: bool) -> Parts {
        if (&seen.links, &seen.addresses) != (&self.observed.links, &self.observed.addresses) {
            self.doubt(Parts::ALL);
        }
        self.reason = std::mem::take(&mut self.doubt);
        if everything { Parts::ALL } else { self.reason }
    }

    /// Ends a look: takes over what was `seen`, of the large parts those that were `read`. Says how many entries were
    /// not as they were believed to be, although nothing had made them doubtful.
    pub fn renew(&mut self, seen: Observed, read: Parts) -> usize {
        let surprises = self.surprises(&seen, read);
        let before = std::mem::replace(&mut self.observed, seen);
        if !read.routes {
            self.observed.routes = before.routes;
        }
        if !read.neighbours {
            self.observed.neighbours = before.neighbours;
        }
        if !read.fdb {
            self.observed.fdb = before.fdb;
        }
        surprises
    }

    /// Entries that are not as they were believed to be, of those parts that were trusted until now.
    fn surprises(&self, seen: &Observed, read: Parts) -> usize {
        let trusted = |part: Parts| part.within(read) && !part.within(self.reason | self.doubt);
        let (before, mut count) = (&self.observed, 0);
        if trusted(Parts::ROUTES) {
            let flat = |of: &Observed| -> BTreeSet<(RouteKey, Route)> {
                of.routes.iter().flat_map(|(key, all)| all.iter().map(|route| (*key, *route))).collect()
            };
            count += flat(before).symmetric_difference(&flat(seen)).count();
        }
        if trusted(Parts::NEIGHBOURS) {
            let (old, new) = (&before.neighbours, &seen.neighbours);
            count += old.iter().filter(|(key, mac)| new.get(key) != Some(mac)).count();
            count += new.keys().filter(|key| !old.contains_key(key)).count();
        }
        if trusted(Parts::FDB) {
            count += before.fdb.symmetric_difference(&seen.fdb).count();
        }
        count
    }

    /// Hears what the kernel says; whether there is something to look at.
    pub fn hear(&mut self, announced: &Announced) -> bool {
        let known = &self.observed;
        let agrees = match announced {
            Announced::Route { key, route, there } => {
                known.routes.get(key).is_some_and(|all| all.contains(route)) == *there
            }
            Announced::Neighbour { device, ip, mac } => known.neighbours.get(&(*device, *ip)) == mac.as_ref(),
            Announced::Fdb { device, mac, to, there } => known.fdb.contains(&(*device, *mac, *to)) == *there,
        };
        if !agrees {
            self.doubt(announced.part());
        }
        announced.part().within(self.doubt)
    }

    /// Notes a step that was carried out. After a change of a device or an address everything is doubtful: the kernel
    /// takes routes and entries along without a word.
    pub fn note(&mut self, op: &Op) {
        let doubtful = op.note(&mut self.observed);
        self.doubt(doubtful);
    }
}
