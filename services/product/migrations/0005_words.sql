-- Which products' words are still to be read into product.word. Triggers note them, in the transaction of whoever
-- writes: a load past the service is read too, whatever ids it gives and whenever it commits, and no crash loses a
-- word. (product.words_read stays for processes of the version before.)
create table product.words_unread (
    id bigint generated always as identity,
    product_id bigint not null,
    constraint words_unread_pkey primary key (id)
);

create index words_unread_product_id_idx on product.words_unread (product_id);

create function product.note_words() returns trigger
    language plpgsql
as $$
begin
    insert into product.words_unread (product_id) values (new.id);
    return null;
end
$$;

create trigger product_added after insert on product.product
    for each row execute function product.note_words();

create trigger product_reworded after update of name, description, category_name on product.product
    for each row
    when ((old.name, old.description, old.category_name) is distinct from (new.name, new.description, new.category_name))
    execute function product.note_words();
