//! What must not compile: handles and memory that would outlive their launch, and uses of what is no longer there.

#[test]
fn lifetimes_are_held_by_types() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
