//! Faults of the machine: too little memory, a clock that jumps, a device that fails.
