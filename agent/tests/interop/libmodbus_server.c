/* SPDX-License-Identifier: Apache-2.0
 *
 * A Modbus/TCP server by libmodbus, for tests and benchmarks: one client at a time, on a free port of loopback, which it
 * prints. Holding and input registers hold their own address, coils and discrete inputs whether it is odd.
 */
#include <errno.h>
#include <modbus.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SIZE = 65536 };

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, modbus_strerror(errno));
    return 1;
}

int main(void)
{
    struct sockaddr_in bound;
    socklen_t bound_size = sizeof bound;
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    modbus_t *context = modbus_new_tcp("127.0.0.1", 0);
    modbus_mapping_t *mapping = modbus_mapping_new(SIZE, SIZE, SIZE, SIZE);
    int listening, address, received;

    if (context == NULL || mapping == NULL)
        return fail("cannot begin");
    for (address = 0; address < SIZE; address++) {
        mapping->tab_registers[address] = (uint16_t)address;
        mapping->tab_input_registers[address] = (uint16_t)address;
        mapping->tab_bits[address] = address & 1;
        mapping->tab_input_bits[address] = address & 1;
    }
    listening = modbus_tcp_listen(context, 1);
    if (listening < 0 || getsockname(listening, (struct sockaddr *)&bound, &bound_size) < 0)
        return fail("cannot listen");
    printf("%d\n", ntohs(bound.sin_port));
    fflush(stdout);
    for (;;) {
        if (modbus_tcp_accept(context, &listening) < 0)
            return fail("cannot accept");
        while ((received = modbus_receive(context, query)) >= 0)
            if (received > 0 && modbus_reply(context, query, received, mapping) < 0)
                break;
        modbus_close(context);
    }
}
