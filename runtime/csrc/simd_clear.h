/* Takes back the names that simd_levels.h gives to a kernel file. */
#undef BXS_NAMED
#undef BXS_LANES
#undef F32
#undef F64
#undef I32
#undef U32
#undef I64
#undef U16
#undef U8
#undef F32_MIN
#undef F32_MAX
#undef BITS
#undef F32_AT
#undef F32_COLUMNS
#undef U8_PUT
