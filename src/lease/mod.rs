//! Who owns which pod prefix: nodes, their leases, and the index of them.
