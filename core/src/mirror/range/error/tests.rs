use super::FaultError;
use crate::addr::VirtAddr;

#[test]
fn flt_4_an_error_of_an_address_names_it_and_others_name_none() {
    let addr = VirtAddr::new(0x7000).unwrap();
    for error in [
        FaultError::Hole { addr },
        FaultError::NoAccess { addr },
        FaultError::ReadOnly { addr },
    ] {
        assert_eq!(error.addr(), Some(addr));
    }
    assert_eq!(FaultError::Released.addr(), None);
}
