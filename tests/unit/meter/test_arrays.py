from services.meter.store import schema
from services.meter.store.arrays import array_of, optional_array, plain_array, text_array


def test_numbers_truths_and_nothing_are_written_as_postgresql_reads_them() -> None:
    assert plain_array([1, -2]) == "{1,-2}"
    assert plain_array([True, False]) == "{True,False}"
    assert plain_array([0.1, 1e-9]) == "{0.1,1e-09}"
    assert optional_array([None, 3]) == "{NULL,3}"


def test_text_may_have_what_arrays_are_written_with() -> None:
    assert text_array(["a", "", "NULL"]) == '{"a","","NULL"}'
    assert text_array(['"', "\\", '","']) == r'{"\"","\\","\",\""}'
    assert text_array(['a"', "b"]) == r'{"a\"","b"}'


def test_a_column_that_may_be_null_is_written_so() -> None:
    assert array_of(schema.tenants.c.limit_nusd) is optional_array
    assert array_of(schema.tenants.c.tenant) is text_array
