//! Real libcs with their debug files: fetched from a Debian archive, unpacked below `target`, never installed.

pub mod allocators;
pub mod archive;
pub mod compare;
pub mod independent;
pub mod linked;
pub mod sites;
pub mod sysmalloc;
