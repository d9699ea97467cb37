//! Reads the vmcore of an Epitaph appliance.
