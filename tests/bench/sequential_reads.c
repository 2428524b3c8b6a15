/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The reference for agent.bus.sequential: libmodbus reads registers one request after the other. Prints reads a second.
 */
#include <errno.h>
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int count, char **arguments)
{
    uint16_t registers[MODBUS_MAX_READ_REGISTERS];
    struct timespec begun, ended;
    int reads, each, done;
    modbus_t *context;

    if (count != 4) {
        fprintf(stderr, "expected: PORT READS REGISTERS\n");
        return 2;
    }
    context = modbus_new_tcp("127.0.0.1", atoi(arguments[1]));
    reads = atoi(arguments[2]);
    each = atoi(arguments[3]);
    if (context == NULL || modbus_set_slave(context, 1) < 0 || modbus_connect(context) < 0) {
        fprintf(stderr, "cannot connect: %s\n", modbus_strerror(errno));
        return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (done = 0; done < reads; done++)
        if (modbus_read_registers(context, 100, each, registers) != each) {
            fprintf(stderr, "read %d: %s\n", done, modbus_strerror(errno));
            return 1;
        }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%f\n", reads / ((double)(ended.tv_sec - begun.tv_sec) + (double)(ended.tv_nsec - begun.tv_nsec) / 1e9));
    modbus_close(context);
    modbus_free(context);
    return 0;
}
