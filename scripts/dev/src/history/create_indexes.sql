do $$
declare
    created text;
begin
    for created in select definition from history.dropped_index loop
        execute created;
    end loop;
end
$$;
