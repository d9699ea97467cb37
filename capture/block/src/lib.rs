//! Polled block drivers and PCI configuration space for both images.
#![no_std]
