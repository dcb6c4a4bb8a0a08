#include "textflag.h"

// Go's assembler has no names for these instructions: their bytes stand beside what LLVM calls them.

// func multiplyTiles(times int, tiles *[4][1024]byte, config *[64]byte)
TEXT ·multiplyTiles(SB), NOSPLIT, $0-24
	MOVQ times+0(FP), CX
	MOVQ tiles+8(FP), SI
	MOVQ config+16(FP), AX
	MOVQ $64, R8
	LEAQ 1024(SI), DI
	LEAQ 2048(SI), BX
	LEAQ 3072(SI), DX
	LONG $0x4978e2c4; BYTE $0x00 // ldtilecfg (%rax)
	LONG $0x4b7ba2c4; BYTE $0x24; BYTE $0x06 // tileloadd (%rsi,%r8), %tmm4
	LONG $0x4b7ba2c4; BYTE $0x2c; BYTE $0x07 // tileloadd (%rdi,%r8), %tmm5
	LONG $0x4b7ba2c4; BYTE $0x34; BYTE $0x03 // tileloadd (%rbx,%r8), %tmm6
	LONG $0x4b7ba2c4; BYTE $0x3c; BYTE $0x02 // tileloadd (%rdx,%r8), %tmm7
	LONG $0x497be2c4; BYTE $0xc0 // tilezero %tmm0
	LONG $0x497be2c4; BYTE $0xc8 // tilezero %tmm1
	LONG $0x497be2c4; BYTE $0xd0 // tilezero %tmm2
	LONG $0x497be2c4; BYTE $0xd8 // tilezero %tmm3
loop:
	LONG $0x5c4ae2c4; BYTE $0xc4 // tdpbf16ps %tmm6, %tmm4, %tmm0
	LONG $0x5c42e2c4; BYTE $0xcc // tdpbf16ps %tmm7, %tmm4, %tmm1
	LONG $0x5c4ae2c4; BYTE $0xd5 // tdpbf16ps %tmm6, %tmm5, %tmm2
	LONG $0x5c42e2c4; BYTE $0xdd // tdpbf16ps %tmm7, %tmm5, %tmm3
	DECQ CX
	JNZ loop
	LONG $0x4b7aa2c4; BYTE $0x04; BYTE $0x06 // tilestored %tmm0, (%rsi,%r8)
	LONG $0x4b7aa2c4; BYTE $0x0c; BYTE $0x07 // tilestored %tmm1, (%rdi,%r8)
	LONG $0x4b7aa2c4; BYTE $0x14; BYTE $0x03 // tilestored %tmm2, (%rbx,%r8)
	LONG $0x4b7aa2c4; BYTE $0x1c; BYTE $0x02 // tilestored %tmm3, (%rdx,%r8)
	LONG $0x4978e2c4; BYTE $0xc0 // tilerelease
	RET
