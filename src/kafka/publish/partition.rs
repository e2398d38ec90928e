//! Which partition the producers put a key into, by librdkafka's own function, so that whoever looks for one webhook need
//! not read a whole topic.

use std::ptr;

use rdkafka_sys::bindings as sys;

/// The producers' partitioner: what Java's does, so that these topics and others keyed by LoginId can be joined by
/// partition.
pub(super) const PARTITIONER: &str = "murmur2_random";

/// The partition of this key in a topic of so many, at least one.
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    debug_assert!(partitions > 0, "a topic has a partition");
    // SAFETY: the key has the length that is told; the function hashes it and looks at nothing else, neither the topic nor
    // the two opaque pointers.
    #[allow(unsafe_code)]
    unsafe {
        sys::rd_kafka_msg_partitioner_murmur2_random(
            ptr::null(),
            key.as_ptr().cast(),
            key.len(),
            partitions,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hashes are those of Java's own test (org.apache.kafka.common.utils.UtilsTest, testMurmur2).
    #[test]
    fn a_key_has_the_partition_that_java_gives_it() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971_i32),
        ] {
            for partitions in [1, 2, 12, 1000] {
                assert_eq!(partition_of(key.as_bytes(), partitions), (hash & 0x7fff_ffff) % partitions, "{key}");
            }
        }
    }
}
